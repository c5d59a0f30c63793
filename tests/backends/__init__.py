"""Every backend draws the masks of the contract, and its values are within the table of ulps."""
