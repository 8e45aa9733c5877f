"""One bounded child process, with frames to talk to it and a killer: engines, chat templates and exports run in one."""
