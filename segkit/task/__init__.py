"""The task declaration and all that follows from it: channels, activation, targets, decision."""

from segkit.task.task import LandClass as LandClass
from segkit.task.task import Task as Task
