"""Whole runs by name. A recipe is a function; the site file overrides single fields of what it returns."""

import difflib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeGuard

from pydantic import Field, ValidationError, model_validator

from pipeline.durations import Duration
from pipeline.errors import ConfigurationError
from pipeline.settings import Section

if TYPE_CHECKING:
    from training.settings import Training  # which looks its recipes up here

Decay = Literal["same", "linear", "div", "quadratic", "log"]

CARRYING = ("gru4rec",)
"""Encoders that can carry their state from step to step."""
OF_USERS = ("hrnn",)
"""Encoders that carry a user's earlier sessions in a state."""
OF_EITHER = ("intentrec", "narm", "sasrec", "session_retriever")
"""Encoders that read sessions, or users: as one long session each, or, session_retriever, by a tower of its own."""
TRANSFORMERS = ("intentrec", "sasrec")
"""Encoders that have layers and attention heads."""
MOST_SESSIONS = 50
"""Of a user, that any recipe reads."""
OF_PROPERTIES = ("intentrec",)
"""Encoders that always read all that is told of an event (features/intents.py)."""
OF_ITEMS = ("category", "price_band")
"""What the catalogue tells of an item before anyone had it."""
CLOCK = ("hour", "weekday", "gap")
"""What the time of an event tells: hour and weekday in the site's zone, seconds since the event before."""


class SequenceRecipe(Section):
    """A session model: encoder x loss x negatives x order x optimiser."""

    kind: Literal["sequence"] = "sequence"
    encoder: str
    """A name in training.models.MODELS."""
    sequence: Literal["session", "user"] = "session"
    """What is read as one: a session, or a user's sessions in order of time."""
    max_sessions: int = Field(default=20, ge=1, le=MOST_SESSIONS)
    """Of sequence user: sessions of a user that are read, the newest; in evaluation, beside those of the day."""
    propagate: Literal["init", "all"] = "init"
    """Of hrnn: whether the user's state opens each session only, or is an input at every event, too."""
    backprop_sessions: int = Field(default=1, ge=1)
    """Of hrnn: a gradient reaches no further back than so many sessions; 1: the session itself, as published."""
    user_to_output: bool = False
    """Of hrnn: whether the user's state speaks for items itself, beside what it tells the session's state."""
    variant: Literal["next_item", "multitask", "hierarchical", "short_term"] = "short_term"
    """Of intentrec: the paper's V0, V1, V2 and V3."""
    intent_weight: float = Field(default=0.2, ge=0)
    """Of intentrec: the weight of each intent's loss beside that of the next item; the paper's lambda."""
    short_term_window: Duration = Field(default=timedelta(minutes=10), gt=timedelta())
    """Of intentrec's short_term: how far back an event still tells of the interest of the moment."""
    duration_cap: Duration | None = Field(default=None, gt=timedelta())
    """Of intentrec: targets weigh by the time until the next event, at most so much; null: all alike."""
    context: tuple[str, ...] = ()
    """What is read of an event beside its item: CLOCK, properties, context columns, by name (docs/training.md)."""
    cold_items: Duration | None = Field(default=None, gt=timedelta())
    """Items that came so lately and are not learnt yet are recommended by OF_ITEMS alone; null: they are not."""
    num_layers: int = Field(default=1, ge=1)
    """Of intentrec and sasrec: layers of each Transformer."""
    num_heads: int = Field(default=2, ge=1)
    """Of intentrec and sasrec: attention heads, which share hidden_size evenly."""
    pooling: Literal["mean", "gru"] = "gru"
    """Of session_retriever: what makes one vector of a session's items."""
    user_dropout: float = Field(default=0, ge=0, lt=1)
    """Of hrnn: share of what goes into the user's state, and of what comes out, that is blanked while training."""
    hidden_size: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the input vector that is blanked while training."""
    prior_half_life: Duration | None = Field(default=None, gt=timedelta())
    """Age at which an event counts half in the recency prior, a column that says what is popular now; null: none."""
    surge_half_life: Duration | None = Field(default=None, gt=timedelta())
    """Age at which an event counts half in the surge, a column that says what has just come up; null: none."""
    surge_weight: float = Field(default=0.5, gt=0)
    """Of the surge beside the model's score."""
    loss: Literal["cross_entropy", "bpr_max", "gbce"] = "cross_entropy"
    """`cross_entropy` over all items, or over drawn ones; `bpr_max` and `gbce` over drawn ones."""
    score_memory_mb: int = Field(default=1024, ge=1)
    """MiB for the scores of all items at a step; what needs more is made in chunks, at the price of time."""
    num_negatives: int = Field(default=0, ge=0)
    """Items drawn a step for all its targets together; 0: targets stand against all items."""
    negative_alpha: float = Field(default=0, ge=0, le=1)
    """Items are drawn with p ~ count^alpha: 0 uniform, 1 by popularity."""
    in_batch_negatives: bool = False
    """Whether the other targets of the step are negatives, too."""
    logq: float = Field(default=1, ge=0, le=1)
    """Of cross-entropy over drawn items: how much of their popularity is taken out of the scores."""
    bpr_regularisation: float = Field(default=1, ge=0)
    """Of bpr_max: weight of the negatives' squared scores."""
    elu: float = Field(default=0.5, ge=0)
    """Of bpr_max: how far below 0 a score can fall; 0: no bound."""
    calibration: float = Field(default=0.75, ge=0, le=1)
    """Of gbce: the paper's t."""
    order: Literal["chronological", "shuffled", "session_parallel"] = "chronological"
    """`chronological`: the newest sessions are learnt last, which news logs reward. `session_parallel`: so, too, but
    one event of each session a step, the state carried on without gradient."""
    epochs: int = Field(default=5, ge=1)
    refit_epochs: int = Field(default=1, ge=1)
    """Passes of a warm refit."""
    patience: int = Field(default=2, ge=1)
    """Of `train --purpose tune`: passes that may go by without a better metric on the held-out day."""
    batch_size: int = Field(default=256, ge=1)
    """Sessions, or users, in a batch; of session_parallel, sessions side by side."""
    batch_events: int = Field(default=0, ge=0)
    """Events in a batch at most, beside batch_size; 0: no such bound. Shuffled sessions go with others as long."""
    optimiser: Literal["adam", "adagrad"] = "adam"
    """`adagrad` moves only the item rows of a step, where items are drawn."""
    learning_rate: float = Field(default=2e-3, gt=0)
    momentum: float = Field(default=0, ge=0, lt=1)
    """Of adagrad."""
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def parts_fit_together(self) -> Self:
        """Refuse what cannot work, and what would silently do nothing."""
        for is_wrong, reason in wrong_combinations(self):
            if is_wrong:
                raise ValueError(reason)
        return self


def wrong_combinations(recipe: SequenceRecipe) -> list[tuple[bool, str]]:
    """Whether a recipe has each fault, and what is wrong about it."""
    is_sampled, loss = recipe.num_negatives > 0, recipe.loss

    def is_set(field: str) -> bool:
        return bool(getattr(recipe, field) != SequenceRecipe.model_fields[field].default)

    return [
        (
            loss != "cross_entropy" and not is_sampled,
            f"loss {loss} compares a target with drawn items; set num_negatives, 2048 for example",
        ),
        (
            recipe.in_batch_negatives and not is_sampled,
            "in_batch_negatives alone never show most of the items; set num_negatives, too, 2048 for example",
        ),
        (
            is_set("negative_alpha") and not is_sampled,
            "negative_alpha says how items are drawn, but none are; set num_negatives, or leave it out",
        ),
        (
            is_set("logq") and not (is_sampled and loss == "cross_entropy"),
            "logq corrects cross_entropy over drawn items only; leave it out",
        ),
        (
            loss == "gbce" and (is_set("negative_alpha") or recipe.in_batch_negatives),
            "loss gbce is calibrated for items drawn evenly; leave out negative_alpha and in_batch_negatives",
        ),
        (loss != "bpr_max" and is_set("elu"), f"elu belongs to loss bpr_max, but loss is {loss}; leave it out"),
        (
            loss != "bpr_max" and is_set("bpr_regularisation"),
            f"bpr_regularisation belongs to loss bpr_max, but loss is {loss}; leave it out",
        ),
        (
            loss != "gbce" and is_set("calibration"),
            f"calibration belongs to loss gbce, but loss is {loss}; leave it out",
        ),
        (
            is_set("momentum") and recipe.optimiser != "adagrad",
            f"momentum belongs to optimiser adagrad, but optimiser is {recipe.optimiser}; leave it out",
        ),
        (
            recipe.order == "session_parallel" and is_set("batch_events"),
            "batch_events bounds batches of whole sessions; of order session_parallel batch_size is the bound",
        ),
        (
            recipe.prior_half_life is not None and recipe.order == "shuffled",
            "prior_half_life asks what was popular at the time of a batch, but batches in shuffled order have no time; "
            "take chronological or session_parallel, or leave it out",
        ),
        (
            is_set("surge_weight") and recipe.surge_half_life is None,
            "surge_weight weighs the surge, but there is none; set surge_half_life, 2m for example",
        ),
        (
            recipe.order == "session_parallel" and recipe.encoder not in CARRYING,
            f"order session_parallel needs an encoder that carries its state ({', '.join(CARRYING)}), "
            f"not {recipe.encoder}; take chronological or shuffled",
        ),
        (
            recipe.sequence == "user" and recipe.encoder not in (*OF_USERS, *OF_EITHER),
            f"sequence user needs an encoder that reads earlier sessions ({', '.join((*OF_USERS, *OF_EITHER))}), "
            f"not {recipe.encoder}; take sequence session",
        ),
        (
            recipe.sequence == "session" and recipe.encoder in OF_USERS,
            f"encoder {recipe.encoder} reads a user's earlier sessions; set sequence: user, or take encoder gru",
        ),
        (
            recipe.sequence == "session" and is_set("max_sessions"),
            "max_sessions bounds a user's sessions, but sequence is session; leave it out",
        ),
        (
            recipe.encoder != "hrnn"
            and any(map(is_set, ("propagate", "backprop_sessions", "user_dropout", "user_to_output"))),
            "propagate, backprop_sessions, user_dropout and user_to_output belong to encoder hrnn, "
            f"but encoder is {recipe.encoder}; leave them out",
        ),
        *(
            (
                recipe.encoder != "intentrec" and is_set(field),
                f"{field} belongs to encoder intentrec, but encoder is {recipe.encoder}; leave it out",
            )
            for field in ("variant", "intent_weight", "short_term_window", "duration_cap")
        ),
        *(
            (
                recipe.encoder not in TRANSFORMERS and is_set(field),
                f"{field} belongs to encoders {' and '.join(TRANSFORMERS)}, but encoder is {recipe.encoder}; "
                "leave it out",
            )
            for field in ("num_layers", "num_heads")
        ),
        (
            recipe.encoder != "session_retriever" and is_set("pooling"),
            f"pooling belongs to encoder session_retriever, but encoder is {recipe.encoder}; leave it out",
        ),
        (
            recipe.duration_cap is not None and is_sampled,
            "duration_cap weighs the targets of cross_entropy over all items; leave out num_negatives",
        ),
        (
            bool(recipe.context) and recipe.encoder in OF_PROPERTIES,
            f"encoder {recipe.encoder} reads all that is told of an event; leave context out",
        ),
        (
            bool(recipe.context) and recipe.order == "session_parallel",
            "order session_parallel reads items only; with context take chronological or shuffled",
        ),
        (
            len(set(recipe.context)) < len(recipe.context),
            f"context is {', '.join(recipe.context)}; give each once",
        ),
        (
            recipe.encoder in TRANSFORMERS and recipe.hidden_size % recipe.num_heads != 0,
            f"hidden_size {recipe.hidden_size} is not shared evenly by num_heads = {recipe.num_heads} attention heads",
        ),
    ]


class EnsembleRecipe(Section):
    """Several session models, trained each by its own recipe, whose scores are added up by weight."""

    kind: Literal["ensemble"] = "ensemble"
    members: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=2)
    """Names of recipes, and what the scores of each weigh."""
    recipes: dict[str, SequenceRecipe] = Field(default_factory=dict)
    """What these are at the site; looked up, never written."""
    seed: int = Field(default=1, ge=0)
    """Of every member."""

    @property
    def seeded(self) -> dict[str, SequenceRecipe]:
        """The members' recipes with this one's seed."""
        return {name: recipe.model_copy(update={"seed": self.seed}) for name, recipe in self.recipes.items()}

    @property
    def sequence(self) -> Literal["session", "user"]:
        """What a batch must hold: users where any member reads them."""
        return "user" if any(recipe.sequence == "user" for recipe in self.recipes.values()) else "session"

    @property
    def max_sessions(self) -> int:
        """Of a user, that any member reads."""
        return max(recipe.max_sessions for recipe in self.recipes.values())

    @property
    def epochs(self) -> int:
        """Passes of all members together."""
        return sum(recipe.epochs for recipe in self.recipes.values())

    @property
    def context(self) -> tuple[str, ...]:
        """What any member reads beside items."""
        return tuple(dict.fromkeys(name for recipe in self.recipes.values() for name in recipe.context))

    @property
    def cold_items(self) -> timedelta | None:
        """The same for all members."""
        return next(iter(self.recipes.values())).cold_items if self.recipes else None


class PopularityRecipe(Section):
    """One list for everyone."""

    kind: Literal["popularity"] = "popularity"
    half_life: Duration | None = Field(default=None, gt=timedelta())
    """Age at which an event counts half; without it every event of the window counts alike."""
    seed: int = 1


class SessionPopularityRecipe(Section):
    """What the session had most often, then what is popular."""

    kind: Literal["session_popularity"] = "session_popularity"
    seed: int = 1


class MarkovRecipe(Section):
    """What came right after the current item."""

    kind: Literal["markov"] = "markov"
    seed: int = 1


class SequentialRulesRecipe(Section):
    """What came some events after the current item."""

    kind: Literal["sequential_rules"] = "sequential_rules"
    steps: int = Field(default=10, ge=1)
    """How many events apart two items may be."""
    half_life: Duration | None = Field(default=timedelta(days=1), gt=timedelta())
    """Age at which an event counts half; without it every event of the window counts alike."""
    seed: int = 1


class ItemKnnRecipe(Section):
    """Items that share sessions with the current item."""

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    """Items kept for each item."""
    regularisation: float = Field(default=20.0, ge=0)
    """Added to the sessions of both items: items that met by chance stay behind."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """0.5 is the cosine, 1 the confidence of a rule."""
    seed: int = 1


class SessionKnnRecipe(Section):
    """What session-kNN methods share."""

    neighbours: int = Field(ge=1)
    """Sessions whose items are scored."""
    sample: int = Field(ge=1)
    """Most recent sessions among which neighbours are looked for."""
    remind: bool = True
    """Whether items of the session may come again; if not, they are no better than items without evidence."""
    seed: int = 1

    @model_validator(mode="after")
    def neighbours_are_sampled(self) -> Self:
        """No more neighbours than sessions to choose from."""
        if self.neighbours > self.sample:
            raise ValueError(
                f"neighbours is {self.neighbours}, but they are chosen among sample = {self.sample} sessions; "
                "raise `sample` or lower `neighbours`"
            )
        return self


class VsKnnRecipe(SessionKnnRecipe):
    """Nearest sessions, recent events of the session counting more."""

    kind: Literal["vs_knn"] = "vs_knn"
    neighbours: int = Field(default=100, ge=1)
    sample: int = Field(default=1000, ge=1)
    event_decay: Decay = "div"
    """From the last event of the session to its first."""
    neighbour_decay: Decay = "div"
    """By how many steps back the last item lies that a neighbour shares."""
    idf: float = Field(default=0.0, ge=0)
    """How much more rare items count."""


class StanRecipe(SessionKnnRecipe):
    """Nearest sessions with three exponential decays; a decay of null is off."""

    kind: Literal["stan"] = "stan"
    neighbours: int = Field(default=500, ge=1)
    sample: int = Field(default=5000, ge=1)
    event_decay: float | None = Field(default=1.02, gt=0)
    """Events of the session after which an item counts 1/e."""
    session_decay: Duration | None = Field(default=timedelta(days=5), gt=timedelta())
    """Age at which a neighbour counts 1/e."""
    item_decay: float | None = Field(default=2.05, gt=0)
    """Events of the neighbour, away from the last shared item, after which an item counts 1/e."""


LearntRecipe = SequenceRecipe | EnsembleRecipe
"""Recipes of models that have vectors; others are baselines."""
Recipe = (
    SequenceRecipe
    | EnsembleRecipe
    | PopularityRecipe
    | SessionPopularityRecipe
    | MarkovRecipe
    | SequentialRulesRecipe
    | ItemKnnRecipe
    | VsKnnRecipe
    | StanRecipe
)


def ensemble() -> Recipe:
    """Attention and a recurrent network, half and half."""
    return EnsembleRecipe(members={"gru4rec": 1, "sasrec": 1})


def gru() -> Recipe:
    """The plain GRU with full cross-entropy."""
    return SequenceRecipe(encoder="gru")


def gru4rec() -> Recipe:
    """GRU4Rec as its authors publish it; the settings are those of their larger data sets."""
    return SequenceRecipe(
        encoder="gru4rec",
        num_negatives=2048,
        negative_alpha=0.5,
        in_batch_negatives=True,
        order="session_parallel",
        batch_size=128,
        optimiser="adagrad",
        learning_rate=0.07,
    )


def hrnn() -> Recipe:
    """HRNN Init with the user's own say on items, which learns as `gru4rec` does but whole users at a time."""
    return SequenceRecipe(
        encoder="hrnn",
        sequence="user",
        user_to_output=True,
        backprop_sessions=20,
        user_dropout=0.5,
        num_negatives=2048,
        negative_alpha=0.5,
        in_batch_negatives=True,
        batch_size=32,
        optimiser="adagrad",
        learning_rate=0.07,
    )


def intentrec() -> Recipe:
    """IntentRec with its short-term window (V3)."""
    return SequenceRecipe(encoder="intentrec", learning_rate=1e-3)


def lstm() -> Recipe:
    """The plain LSTM with full cross-entropy."""
    return SequenceRecipe(encoder="lstm")


def narm() -> Recipe:
    """NARM with full cross-entropy."""
    return SequenceRecipe(encoder="narm", dropout=0.25, batch_size=128)


def rnn() -> Recipe:
    """The plain recurrent network with full cross-entropy."""
    return SequenceRecipe(encoder="rnn")


def sasrec() -> Recipe:
    """SASRec with full cross-entropy; for large catalogues set num_negatives, and loss gbce for gSASRec."""
    return SequenceRecipe(encoder="sasrec", num_layers=2, dropout=0.2, batch_size=128)


def session_retriever() -> Recipe:
    """The session retriever without a user tower, a softmax over all items; `sequence: user` puts the tower in."""
    return SequenceRecipe(encoder="session_retriever", batch_size=128)


def popularity() -> Recipe:
    """Items by their number of events in the window."""
    return PopularityRecipe()


def recent_popularity() -> Recipe:
    """Items by their number of events, recent ones counting more."""
    return PopularityRecipe(half_life=timedelta(days=1))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "gru": gru,
    "gru4rec": gru4rec,
    "hrnn": hrnn,
    "intentrec": intentrec,
    "lstm": lstm,
    "narm": narm,
    "rnn": rnn,
    "sasrec": sasrec,
    "session_retriever": session_retriever,
    "ensemble": ensemble,
    "popularity": popularity,
    "recent_popularity": recent_popularity,
    "session_popularity": SessionPopularityRecipe,
    "markov": MarkovRecipe,
    "sequential_rules": SequentialRulesRecipe,
    "item_knn": ItemKnnRecipe,
    "vs_knn": VsKnnRecipe,
    "stan": StanRecipe,
}


def reads_properties(recipe: Recipe) -> TypeGuard[LearntRecipe]:
    """Whether a model of this recipe reads more of an event, or of an item, than its code."""
    if isinstance(recipe, EnsembleRecipe):
        return any(map(reads_properties, recipe.recipes.values()))
    if not isinstance(recipe, SequenceRecipe):
        return False
    return recipe.encoder in OF_PROPERTIES or bool(recipe.context) or recipe.cold_items is not None


def properties_read(recipe: LearntRecipe) -> tuple[str, ...] | None:
    """Names of the properties that a model of this recipe reads; None: all."""
    members = recipe.recipes.values() if isinstance(recipe, EnsembleRecipe) else [recipe]
    if any(member.encoder in OF_PROPERTIES for member in members):
        return None
    return tuple(dict.fromkeys((*recipe.context, *(OF_ITEMS if recipe.cold_items is not None else ()))))


def find_recipe(name: str, training: "Training") -> Recipe:
    """The recipe of a name with the site's overrides; raises ConfigurationError for an unknown name or field."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
        raise ConfigurationError(f"there is no recipe {name!r}; {hint}")
    recipe = override(name, RECIPES[name](), training.recipes.get(name) or {})
    return find_members(name, recipe, training) if isinstance(recipe, EnsembleRecipe) else recipe


def find_members(name: str, recipe: EnsembleRecipe, training: "Training") -> EnsembleRecipe:
    """An ensemble with the recipes of its members; raises ConfigurationError where their sum is no dot product."""
    found: dict[str, SequenceRecipe] = {}
    for member in recipe.members:
        each = None if member == name else find_recipe(member, training)
        if not isinstance(each, SequenceRecipe):
            raise ConfigurationError(
                f"training.recipes.{name}.members: {member} has no item vectors of its own, so a sum with its scores "
                "is no dot product, and no item index could serve it; name models that have vectors"
            )
        found[member] = each
    if len({each.cold_items for each in found.values()}) > 1:
        told = ", ".join(f"{member}: {each.cold_items}" for member, each in found.items())
        raise ConfigurationError(
            f"training.recipes.{name}.members: they offer different cold items ({told}), which one index cannot do; "
            "give all the same cold_items, or none"
        )
    return recipe.model_copy(update={"recipes": found})


def override(name: str, recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """A recipe with some fields changed."""
    known = [field for field in type(recipe).model_fields if field != "recipes"]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}"
            raise ConfigurationError(f"training.recipes.{name}.{field}: unknown field; {hint}")
    try:
        return type(recipe).model_validate(recipe.model_dump() | fields)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, (name, *fault["loc"])))
        raise ConfigurationError(f"training.recipes.{place}: {fault['msg'].removeprefix('Value error, ')}") from error
