"""The rules and sequences that ship with Vedette, as YAML files in this folder."""
