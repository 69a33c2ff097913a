"""The agents that the suite holds for. A new one: see `support.driver_case`."""

from support.claude_case import CLAUDE
from support.demo_case import DEMO
from support.driver_case import DriverCase

CASES: list[DriverCase] = [DEMO, CLAUDE]
