"""Conversation to prompt, tokens to answer: the same for every engine."""
