"""Version control: git, from git itself, behind one hardened runner."""
