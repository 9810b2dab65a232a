"""The demo: three internal systems, a third party that misbehaves, and the story that is played with them."""
