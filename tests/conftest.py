"""The suite never asks the network: a hub id that is not here fails at once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
