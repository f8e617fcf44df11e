"""Who may speak to this host: certificates, the list of what is trusted, and connections between hosts that check both.

docs/design/0009-trust.md says why it is as it is.
"""
