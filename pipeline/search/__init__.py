"""Searchers: given a search space and a black box that evaluates plans, they look for the best plan within the budget."""
