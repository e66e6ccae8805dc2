"""The service on each host: capture, match, report and ship; the command ``vedette-agent``."""
