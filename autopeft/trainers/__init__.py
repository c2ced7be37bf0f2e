"""How a configuration is trained and measured: models, adapters, data, the loop, the memory meter."""
