"""The hardware, in Amaranth: one file, one job. Imports nothing of the models."""
