"""Checks that every implementation of an interface must pass; tests only supply the object.

from haq.testing import check_agent, check_hardware, check_scheme

def test_my_agent():
check_agent(AgentKind(MyAgent))
"""

from haq.testing.agents import Toy, check_agent
from haq.testing.hardware import check_hardware
from haq.testing.schemes import GRANULARITIES, check_quantizer, check_scheme

__all__ = ["GRANULARITIES", "Toy", "check_agent", "check_hardware", "check_quantizer", "check_scheme"]
