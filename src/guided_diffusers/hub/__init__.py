"""The Hub: push in one commit, pull atomically, a card that is filled, errors in one line.

Everything here works on folders in diffusers' format and loads no model, so it serves whatever was saved.
"""

from guided_diffusers.hub.errors import HubError
from guided_diffusers.hub.facts import CardFacts
from guided_diffusers.hub.inventory import inventory
from guided_diffusers.hub.pull import pull
from guided_diffusers.hub.push import Pushed, push_folder

__all__ = ["CardFacts", "HubError", "Pushed", "inventory", "pull", "push_folder"]
