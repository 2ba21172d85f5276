"""Where runs and limits are kept: the protocol and its implementations."""
