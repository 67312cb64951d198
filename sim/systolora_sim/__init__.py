"""Models and benches of systolora: the golden arithmetic, the command machine, the cocotb runs."""
