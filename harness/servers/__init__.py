"""How a server of models is asked, and what it has against a request."""
