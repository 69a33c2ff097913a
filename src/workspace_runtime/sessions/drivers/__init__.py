"""One driver for each kind of agent, all behind `base.Driver`."""
