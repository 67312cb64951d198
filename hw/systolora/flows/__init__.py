"""Packages of the generated Verilog for other people's flows, beside the Verilog itself."""
