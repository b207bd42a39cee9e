"""Searchers: handed a space and a black box that judges plans, they look for the best plan within the budget."""
