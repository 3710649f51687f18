"""A plugin for parafix: one rootfinder, one scan. This module imports no framework."""
