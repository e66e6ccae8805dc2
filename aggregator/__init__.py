"""The fleet's service: receive, store, correlate; and the operator's command ``vedette``."""
