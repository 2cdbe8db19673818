package events

import (
	"testing"
	"time"
)

func TestDelayGrowsUpToItsMaximum(t *testing.T) {
	t.Parallel()
	for n := range 100 {
		for range 20 {
			d := Delay(n)
			least, most := time.Duration(float64(MaxDelay)*0.8), time.Duration(float64(MaxDelay)*1.2)
			if n <= 1 {
				least, most = 800*time.Millisecond, 1200*time.Millisecond
			} else if n < 5 {
				least = time.Second
			}
			if d < least || d > most {
				t.Fatalf("Delay(%d) = %v", n, d)
			}
		}
	}
}
