"""Kernels: functions that write code through `dsl.Kernel`, one file per operator family."""
