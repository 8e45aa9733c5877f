"""GGUF models in llama.cpp."""
