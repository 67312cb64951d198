"""Calculates docs/results/energy.md and .json: energies of MACs and of training steps."""

from systolora_sim.energy_script import main

if __name__ == "__main__":
    main()
