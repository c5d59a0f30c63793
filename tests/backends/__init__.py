"""Every backend gives the contract's masks, and values within the table of ulps."""
