"""From Verilog to FPGAs and standard cells with the open tools: `systolora synth`."""
