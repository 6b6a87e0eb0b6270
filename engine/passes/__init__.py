"""One pass over one batch: on the host, on a device, and the windows and layouts of both."""
