"""Anonymizes many recordings over worker processes."""
