"""Files of the workspace: reading, changing, searching and watching them."""
