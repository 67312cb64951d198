"""Parts of the cycle model (`systolora_sim.cycle_model`, docs/cycle-model.md)."""
