"""The whole flow, stage by stage: what each command does, without its command line. Knows every room but `cli`."""
