"""Groups of options in ``--help``, named alike in every command."""

INPUT = "Input"
OUTPUT = "Output"
ARTIFACTS = "Model and bank"
DRAWS = "Draws"
DEVICES = "Devices"
RUN = "Run"
ADVANCED = "Advanced"
