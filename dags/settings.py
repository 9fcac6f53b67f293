"""The schedule of a site's nights: when they start, how often a step is tried, where the heavy steps run."""

from datetime import timedelta
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.durations import Duration
from pipeline.settings import Section, StepName

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Notifier(Section):
    """One of Airflow's notifiers, of a provider package or of your own."""

    notifier: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    """Its class, like `airflow.providers.smtp.notifications.smtp.SmtpNotifier`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What it is made with; templates see `alert.sentence`, `.command`, `.link`, and `.text`, which is all three."""


class Schedule(Section):
    """The `schedule` section of a site file; only the DAGs read it."""

    owner: str = Field(default="nightjar", min_length=1)
    """Whom Airflow names as the owner of the site's DAGs."""
    start_after: Duration = timedelta(0)
    """How long after midnight of the site's zone a night starts, for logs that arrive late; under 24h."""
    retrain_on: list[Weekday] = Field(default_factory=lambda: list[Weekday](get_args(Weekday)), min_length=1)
    """Weekdays whose day is trained for: `[sun]` for once a week."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a step is tried again after exit code 1. Codes 2 and 3 are never tried again."""
    retry_delay: Duration = timedelta(seconds=30)
    """Wait before the first retry; doubled for each further one."""
    max_retry_delay: Duration = timedelta(minutes=15)
    """The longest wait between two tries."""
    step_timeout: Duration = timedelta(hours=12)
    """A step that runs longer is stopped and counts as a try, so that a hung one cannot hold up every later night."""
    gpu_steps: list[StepName] = Field(default_factory=lambda: list[StepName](["train", "refit"]))
    """Steps that go to `gpu_queue` and take a slot of `gpu_pool`."""
    gpu_queue: str = Field(default="gpu", min_length=1)
    """Celery queue of the GPU workers; under the LocalExecutor only a label."""
    gpu_pool: str = Field(default="gpu", min_length=1)
    """Airflow pool that limits how many GPU steps run at once, over all sites. Without it they never start."""
    gpu_executor: str | None = Field(default=None, min_length=1)
    """Executor of the GPU steps, where `[core] executor` names several: CeleryExecutor. Else Airflow's first one."""
    gpu_pod_template: str | None = Field(default=None, pattern=r"^/.*\.ya?ml$")
    """Pod template of the GPU steps under the KubernetesExecutor: a path that the scheduler can read."""

    alerts: list[Notifier] = Field(default_factory=list)
    """Who is told when a task fails for good, when a step finds something, and of what the next two keys name."""
    tables_by: str | None = Field(default=None, pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")
    """The time of day, like "06:00", by which a night has to end; counted from midnight, or from a later start."""
    fresh_within: Duration | None = None
    """How old the newest day that passed may get, from its end on, before someone is told: `30h`."""

    @field_validator("tables_by", mode="before")
    @classmethod
    def time_of_day(cls, value: object) -> object:
        """YAML takes an unquoted 16:30 for the number 990."""
        return f"{value // 60:02}:{value % 60:02}" if isinstance(value, int) else value

    @field_validator("fresh_within")
    @classmethod
    def longer_than_a_day(cls, value: timedelta | None) -> timedelta | None:
        """The newest day is a day old just before the next one ends."""
        if value is not None and value <= timedelta(hours=24):
            raise ValueError("a day is followed by the next one after 24h; write more, like 30h")
        return value

    @model_validator(mode="after")
    def somebody_is_told(self) -> "Schedule":
        """An alert that nobody gets is a mistake."""
        for name in ("tables_by", "fresh_within"):
            if getattr(self, name) is not None and not self.alerts:
                raise ValueError(f"{name} needs `alerts`: there is nobody to tell")
        return self

    @field_validator("start_after")
    @classmethod
    def within_the_day(cls, value: timedelta) -> timedelta:
        """A night that starts a day late would meet the next one."""
        if value >= timedelta(hours=24):
            raise ValueError("a night starts within the day after its own: write less than 24h")
        return value

    @field_validator("retry_delay", "max_retry_delay", "step_timeout")
    @classmethod
    def longer_than_nothing(cls, value: timedelta) -> timedelta:
        """Airflow takes zero for `at once`, or for `time is up`."""
        if value <= timedelta(0):
            raise ValueError("write a time above zero, like 30s or 12h")
        return value
