"""Downloads the published files, checks them and records what came from where."""
