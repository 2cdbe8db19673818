package papermap

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
)

// MaxDashboardID is the longest dashboard id that is accepted, in code points.
const MaxDashboardID = 255

// NewDashboard is a dashboard to be created. The texts must be valid UTF-8.
type NewDashboard struct {
	TenantID    string // the tenant that the usage report attributes the request to; no control characters
	Title       string
	Description string // may be empty
}

// Dashboard is a created dashboard: its id at Papermap, and the title that was requested.
type Dashboard struct {
	ID, Title string
	Status    int // of the answer: 200 as documented, or 201
}

// CreateDashboard creates a dashboard: at most one for each call whose error is not [Unknown].
// Every error is an [*Error]. After Unknown there may be a dashboard whose id cannot be looked up.
// It takes at most RetryBudget plus one Timeout.
func (c *Client) CreateDashboard(ctx context.Context, d NewDashboard) (Dashboard, error) {
	body, err := json.Marshal(struct {
		WorkspaceID string `json:"workspace_id"`
		Title       string `json:"title"`
		Description string `json:"description,omitempty"`
	}{c.ws.ID, d.Title, d.Description})
	if err != nil {
		const message = "nothing was sent: title or description is not valid UTF-8"
		return Dashboard{}, &Error{Class: Refused, Message: message}
	}
	var created Dashboard
	failed := c.call(ctx, request{
		route: "create", method: http.MethodPost, path: "/api/v1/external/dashboards",
		tenantID: d.TenantID, body: body, maxBody: maxCreateBody,
		read: func(a answer) error {
			id, err := createdID(a)
			created = Dashboard{ID: id, Title: d.Title, Status: a.status}
			return err
		},
	})
	if failed != nil {
		return Dashboard{}, failed
	}
	return created, nil
}

// createdID returns the new dashboard's id from a 2xx. An error means that it is unknown what was
// created.
func createdID(a answer) (string, error) {
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		return "", errors.New("neither 200 nor 201")
	}
	m, err := a.readSuccess()
	if err != nil {
		return "", err
	}
	// The API's reference has the id at data.dashboard_id, its guide at data.data.dashboard_id.
	for range 2 {
		m = readMembers(m["data"])
		var id string
		if json.Unmarshal(m["dashboard_id"], &id) == nil && ValidDashboardID(id) {
			return id, nil
		}
	}
	return "", errors.New("no valid dashboard id in it")
}

// ValidDashboardID reports whether a dashboard id is accepted: 1 to MaxDashboardID code points of
// valid UTF-8 without control characters.
func ValidDashboardID(id string) bool {
	return id != "" && utf8.ValidString(id) && utf8.RuneCountInString(id) <= MaxDashboardID &&
		!strings.ContainsFunc(id, unicode.IsControl)
}
