"""The timing harness behind `xent bench`: what is timed, against whom, by which clock, and how it is shown.

One case at a time: a workload in one dtype. Each framework has a process of its own (`process`), and one driver
(`run`, `driver`) lets all contenders of all processes take turns, round by round, so that any two of them were timed
side by side on the same machine under the same load.
"""
