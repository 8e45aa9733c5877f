"""Facts about model files: format, contents, memory needed. Every file is treated as hostile."""
