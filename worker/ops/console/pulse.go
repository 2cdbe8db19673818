package console

import (
	"net/http"

	"papermap-worker/worker"
)

// pulse is how the worker does, in a word. The head of each page has it, and asks for it every few
// seconds: an answer that does not come is a lost connection (see console.js).
type pulse struct{ Level, Word string }

func pulseOf(s worker.State) pulse {
	switch {
	case !s.Ready:
		return pulse{"bad", "Not working"}
	case s.Consuming == "paused":
		return pulse{"warn", "Paused"}
	}
	return pulse{"good", "Working"}
}

// pulse writes only the head's state, for the script.
func (c *Console) pulse(rw http.ResponseWriter, _ *visit) error {
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	return pages["error"].ExecuteTemplate(rw, "pulse", pulseOf(c.w.State()))
}

// notFound answers what no other route does. It is a page like any other, with the navigation.
func (c *Console) notFound(http.ResponseWriter, *visit) error {
	return refuse(http.StatusNotFound, "The console has no such page.")
}
