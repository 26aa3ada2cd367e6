"""What drafts may lose before they have to wait: an account kept in plain steps.

A step that drafts earns the tokens it makes and pays the time it takes, in plain steps. Nothing is
drafted that the account cannot bear, so drafting never costs a text more than the account was
given: a little to begin with, a little with each of the next answers, since a beginning may be
unlike the rest (an unknown name, one word), and one per cent of the tokens for ever, since what
does not pay now may pay later; half as much where there is enough evidence that nothing does. Of
the first tokens of all it bears less, as they may be the whole answer.
"""

from __future__ import annotations

import math

START = 2.0
# Where it is known how drafts went on other texts, all that is for the first ones is less: what
# does not pay there will seldom pay here.
START_KNOWN = 1.0
# No probe is made that, with all that was lost so far, may lose more than this share of the first
# tokens of all: the first answer may be over soon.
EARLY_TOKENS = 32
EARLY_SHARE = 0.12
# So much is brought by these of the answers after the first, of those of some length: ever fewer.
ANSWER = 1.0
ANSWERS = frozenset((1, 2, 3, 5, 8))
ANSWERS_DOUBTED = frozenset((1, 3))
# Each token brings so much, the first ones more and, where what was recorded or all that is known
# says that drafts do not pay, less; as long as the balance is below the last figure.
FIRST_TOKENS = 400
FIRST_TOKEN = 0.025
TOKEN = 0.01
TOKEN_DOUBTED = 0.0075
TOKEN_OFF = 0.005
IDLE_LIMIT = 1.5
# No more is saved: what has paid for long may lose no more than this when it no longer does.
SAVED = 8.0
# What is earned beyond that is put by, up to the first figure, and pays for an answer that begins
# again with what paid before one that failed: so much, and with no less than the third figure.
PUT_BY = 32.0
SECOND_CHANCE = 2.0
LEAST_CHANCE = 0.5
# No more is owed: a step may have waited for another program, and its debt must not outlast that.
LEAST = -1.0
# What is left at least when drafting ends: enough for a small probe.
LEFT = 0.5
# A draft that is only watched costs no more than this share of what one loses that is verified in
# vain. As many are wanted, so the account is given so much less.
WATCHED = 0.5
# So much is lent in all after watched drafts that would have paid, until drafting has begun.
CREDIT = 2.0


class Allowance:
    """The account.

    Args:
        known: Whether it is known how drafts went on other texts: less is to be found out then.

    Attributes:
        balance: Plain steps that may be lost by now.
    """

    def __init__(self, *, known: bool = False) -> None:
        self.balance = START_KNOWN if known else START
        self._part = 1.0  # of what is given
        self._first_tokens = 0 if known else FIRST_TOKENS
        self._token, self._bringing = TOKEN, ANSWERS
        self._credit = CREDIT
        self._answers = 0
        self._tokens = 0.0
        self._put_by = 0.0
        self._lost = 0.0  # of the first tokens
        self._trusted = known  # until the first draft

    def defers(self, price: float) -> bool:
        """Whether a chosen draft of so many plain steps is to wait: of the first tokens no more is
        lost than the account holds, but by the first draft where it is known how they went.
        """
        early = self._tokens < EARLY_TOKENS and not self._trusted
        return early and price - 1.0 > self.balance - LEAST

    @property
    def full(self) -> bool:
        """Whether no more is saved."""
        return self.balance >= SAVED

    @property
    def total(self) -> float:
        """The balance, and what was put by."""
        return self.balance + self._put_by

    def doubt(self) -> None:
        """What is known of other texts says that drafts do not pay here: less is to be found out
        by this text.
        """
        self._token, self._bringing = TOKEN_DOUBTED, ANSWERS_DOUBTED

    def spare(self, *, watches: bool) -> None:
        """Give less as long as drafts are only watched."""
        self._part = WATCHED if watches else 1.0

    def begin_answer(self) -> None:
        """An answer begins, after one that was not over at once."""
        if self._tokens > 0:
            self._answers += 1
            self.balance += self._part * ANSWER * (self._answers in self._bringing)

    def take_plain(
        self, tokens: float, late: float = 0.0, *, wanted: float = 0.0, off: bool = False
    ) -> None:
        """A step that drafted nothing made so many tokens.

        Args:
            tokens: What it made.
            late: Plain steps that it took longer, since a draft before it let nothing overlap.
            wanted: What the next draft may lose: so much is saved for it.
            off: Whether there is enough evidence that drafts do not pay.
        """
        self.balance = max(LEAST, self.balance - late)
        self._lose(late)
        share = self._share(off=off)
        self._tokens += tokens
        limit = max(self._part * IDLE_LIMIT, wanted)
        if self.balance < limit:
            self.balance = min(limit, self.balance + share * tokens)

    def bears(self, lost: float) -> bool:
        """Whether a probe may lose so much now."""
        return self.balance >= lost and not self._early(lost)

    def plain_before(self, lost: float, *, off: bool) -> int:
        """Plain steps, at least, before a probe may lose so much, if each makes a token."""
        steps = max(0, math.ceil((lost - self.balance) / self._share(off=off)))
        return max(steps, self._early(lost))

    def _early(self, lost: float) -> int:
        """Tokens to be made before the first ones bear that so much is lost."""
        if lost <= 0.0:
            return 0
        enough = min(EARLY_TOKENS, math.ceil((self._lost + lost) / EARLY_SHARE))
        return max(0, enough - math.floor(self._tokens))

    def _share(self, *, off: bool) -> float:
        first, later = (TOKEN, TOKEN_OFF) if off else (FIRST_TOKEN, self._token)
        return self._part * (first if self._tokens < self._first_tokens else later)

    def take_watched(self, price: float) -> None:
        """A draft of which nothing was verified took so many plain steps."""
        self.balance = max(LEAST, self.balance - price)
        self._lose(price)

    def lend(self, price: float, next_price: float) -> None:
        """A watched draft would have paid: the account is not to keep the next one waiting for what
        that took, nor for what it may lose itself, as far as that was not said often in vain.

        Args:
            price: What the watched draft took, in plain steps.
            next_price: What the next may lose that is verified.
        """
        wanted = max(price, next_price - self.balance)
        lent = min(self._credit, wanted)
        self._credit -= lent
        self.balance += lent

    def take_drafted(self, price: float, tokens: float) -> None:
        """A step that drafted was over.

        Args:
            price: Its time, in plain steps.
            tokens: What it made, the token that needs no draft included.
        """
        self._lose(price - tokens)
        self._trusted = False
        self._tokens += tokens
        balance = self.balance + tokens - price
        self._put_by = min(PUT_BY, self._put_by + max(0.0, balance - SAVED))
        self.balance = max(LEAST, min(SAVED, balance))

    def _lose(self, lost: float) -> None:
        if self._tokens < EARLY_TOKENS:
            self._lost += lost

    def afford_second_chance(self) -> bool:
        """Take what a second chance may lose out of what was put by; whether it is enough."""
        taken = min(self._put_by, max(0.0, SECOND_CHANCE - self.balance))
        if self.balance + taken < LEAST_CHANCE:
            return False
        self._put_by -= taken
        self.balance += taken
        return True

    def bear(self, price: float) -> None:
        """Let one draft of this price fail, in plain steps, without ending what is drafted."""
        self.balance = max(self.balance, price - 1.0)

    def renew(self) -> None:
        """What was lost does not count any more."""
        self.balance = max(self._part * ANSWER, self.balance)

    def leave(self) -> None:
        """Drafting ends for now; it can be tried again."""
        self._credit = CREDIT
        self.balance = max(LEFT, self.balance)
