"""Messages to another interpreter, thread or process, and back."""

import time

from bench.bench_latency import latencies
from bench.contenders import LINKS
from bench.race import Case, Effort, Figure, race


class HotRoundTrip(Case):
    """One message after the other."""

    name = "channel_hot"
    title = "a small message there and back, one after the other"
    figures = (Figure("p50", "p50"), Figure("p99", "p99"))
    contenders = LINKS
    pause = 0.0
    full = Effort(rounds=9, seconds=0.3, count=5000)
    short = Effort(rounds=3, seconds=0.2, count=2000)

    def turn(self, contender, link):
        send, receive = link

        def round_trip():
            send(b"ping")
            receive()

        return latencies(round_trip, self.effort, pause=self.pause)


class IdleRoundTrip(HotRoundTrip):
    """Both sides are asleep when a message arrives."""

    name = "channel_idle"
    title = "a small message there and back, 2 ms between them"
    pause = 0.002
    full = Effort(rounds=7, seconds=1.0, count=300)
    short = Effort(rounds=3, seconds=0.5, count=150)


class OneWay(Case):
    """Until the receiver has confirmed that it has them all."""

    name = "channel_one_way"
    title = "small messages in one direction, as fast as they go"
    figures = (Figure("rate", "messages a second", "/s", more_is_better=True),)
    contenders = LINKS
    full = Effort(rounds=7, count=200_000)
    short = Effort(rounds=3, count=50_000)

    def turn(self, contender, link):
        send, receive = link
        count = self.effort.count
        start = time.perf_counter()
        send(count)
        for number in range(count):
            send(number)
        receive()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": count / seconds}


bench_channel_hot = race(HotRoundTrip)
bench_channel_idle = race(IdleRoundTrip)
bench_channel_one_way = race(OneWay)
