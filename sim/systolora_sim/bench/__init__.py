"""Benches that drive the generated Verilog: the only part of the models that needs cocotb."""
