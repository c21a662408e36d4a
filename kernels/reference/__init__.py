"""Every kernel in plain torch, under the same stem: the contract, the tests' yardstick and the CPU engine's path."""
