package proof_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"papermap-worker/worker/proof"
)

// The faults, as they are counted. Each must happen in a long run.
const (
	asleep          = "stopped past its lease and the duplicate window at "
	apiCut          = "cut the connections to the API"
	apiRefused      = "refused connections to the API"
	cutOff          = "cut off one worker from NATS"
	natsKilled      = "NATS killed"
	postgresKilled  = "PostgreSQL restarted"
	consumerDeleted = "consumer deleted"
	streamRebuilt   = "stream deleted and recreated"
	natsFull        = "JetStream's disk full"
	databaseFull    = "the database's disk full"
)

func (c *chaos) faultsDue() []string {
	due := []string{asleep, apiCut, apiRefused, cutOff, natsKilled, consumerDeleted, streamRebuilt, natsFull}
	if c.postgres != nil {
		due = append(due, postgresKilled)
	}
	if c.replicas == 1 {
		due = append(due, databaseFull)
	}
	return due
}

// faults makes the API and the connection to it fail, and returns when nothing worked.
func (c *chaos) faults(ctx context.Context, random *rand.Rand) (outages []proof.Window) {
	shortest := time.Second
	if short() {
		shortest = 250 * time.Millisecond
	}
	var bag [][]string
	var ways []int
	for more := true; more; {
		bout := drawFrom(&bag, bouts, random)
		c.setFaults(bout...)
		c.proxy.refuse.Store(false)
		c.proxy.delay.Store(0)
		switch drawFrom(&ways, []int{0, 1, 2, 3, 4, 5, 6, 7}, random) {
		case 0:
			c.proxy.cut()
			c.count(apiCut)
		case 1:
			c.proxy.cut()
			c.proxy.refuse.Store(true)
			c.count(apiRefused)
		case 2:
			c.proxy.delay.Store(int64(100 * time.Millisecond))
		}
		outage := proof.Window{From: time.Now()}
		more = sleep(ctx, shortest+time.Duration(random.Int64N(int64(3*shortest))))
		if outage.To = time.Now(); bout[0] == "status=503" {
			outages = append(outages, outage)
		}
	}
	c.proxy.refuse.Store(false)
	c.proxy.delay.Store(0)
	return outages
}

// startReplica starts a worker with its own link to NATS.
func (c *chaos) startReplica(slot int, env ...string) (*process, error) {
	link := "nats://" + c.links[slot].listener.Addr().String()
	return c.startWorker(fmt.Sprintf("worker%d", slot), append(env, "NATS_URL="+link)...)
}

// cutOffs cuts off one worker at a time from NATS, while the others have it. In the long form it is
// also longer than AckWait and the relay's lease.
func (c *chaos) cutOffs(ctx context.Context, random *rand.Rand) {
	wait := min(*chaosTime/4, 20*time.Second)
	for sleep(ctx, wait/2+time.Duration(random.Int64N(int64(wait)))) {
		link := c.links[random.IntN(len(c.links))]
		link.refuse.Store(true)
		link.cut()
		c.count(cutOff)
		sleep(ctx, wait/4+time.Duration(random.Int64N(int64(wait))))
		link.refuse.Store(false)
	}
}

// brokers kills the NATS server now and then.
func (c *chaos) brokers(ctx context.Context, random *rand.Rand) {
	wait := min(*chaosTime/3, 10*time.Second)
	for sleep(ctx, wait+time.Duration(random.Int64N(int64(wait)))) {
		c.turn.Lock()
		err := c.nats[0].restart(time.Duration(random.Int64N(int64(wait / 5))))
		c.turn.Unlock()
		if err != nil {
			c.t.Error(err)
			return
		}
		c.count(natsKilled)
	}
}

// databases restarts PostgreSQL as a crash would, once a minute and at least once.
func (c *chaos) databases(ctx context.Context, random *rand.Rand) {
	wait := min(*chaosTime/4, time.Minute)
	for sleep(ctx, wait+time.Duration(random.Int64N(int64(wait)))) {
		wait = time.Minute
		c.away.Store(math.MaxInt64)
		if err := c.postgres.Restart(); err != nil {
			c.t.Error(err)
			return
		}
		c.away.Store(time.Now().Add(3 * time.Second).UnixNano())
		c.count(postgresKilled)
	}
}
