"""Where models come from: folders, the Hugging Face cache and hub, packages that contain one."""
