"""How bytes travel between two agents: memory over the page channel, the other images in a checked stream."""
