package papermap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxDashboardID is the longest dashboard id that is believed, in code points.
const MaxDashboardID = 255

// NewDashboard is a dashboard to be created. The texts must be valid UTF-8.
type NewDashboard struct {
	TenantID    string // whom the request is attributed to in the usage report; no control characters
	Title       string
	Description string // may be empty
}

// Dashboard is a dashboard that was created: the API's id for it, and the title that was asked for.
type Dashboard struct {
	ID, Title string
	Status    int // of the answer: 200 as documented, or 201
}

// CreateDashboard creates a dashboard: at most one for each call whose error is not [Unknown]. Every error is an [*Error];
// after Unknown there may be a dashboard whose id nobody can look up. It takes at most RetryBudget and one Timeout.
func (c *Client) CreateDashboard(ctx context.Context, d NewDashboard) (Dashboard, error) {
	body, err := json.Marshal(struct {
		WorkspaceID string `json:"workspace_id"`
		Title       string `json:"title"`
		Description string `json:"description,omitempty"`
	}{c.ws.ID, d.Title, d.Description})
	if err != nil {
		return Dashboard{}, &Error{Class: Refused, Message: "nothing was sent: title or description is not valid UTF-8"}
	}
	var made Dashboard
	failed := c.call(ctx, request{
		route: "create", method: http.MethodPost, path: "/api/v1/external/dashboards", tenantID: d.TenantID, body: body, maxBody: maxCreateBody,
		read: func(a answer) (err error) {
			made.ID, err = createdID(a)
			made.Title, made.Status = d.Title, a.status
			return err
		},
	})
	if failed != nil {
		return Dashboard{}, failed
	}
	return made, nil
}

// createdID finds the new dashboard's id in a 2xx. An error means that we cannot tell what was created.
func createdID(a answer) (string, error) {
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		return "", errors.New("neither 200 nor 201")
	}
	if !mayBeJSON(a.header.Get("Content-Type")) {
		return "", errors.New("not declared as JSON") // a page of something between us and the API
	}
	var top struct {
		Success jsontext.Value `json:"success"`
		Data    jsontext.Value `json:"data"`
	}
	if json.Unmarshal(a.body, &top, lenient) != nil {
		return "", errors.New("not a JSON object")
	}
	if string(top.Success) == "false" {
		_, message := reason(a.body)
		return "", fmt.Errorf("success is false: %s", message)
	}
	// The API's reference has the id at data.dashboard_id, its guide at data.data.dashboard_id.
	level := top.Data
	for range 2 {
		var data struct {
			DashboardID jsontext.Value `json:"dashboard_id"`
			Data        jsontext.Value `json:"data"`
		}
		if json.Unmarshal(level, &data, lenient) != nil {
			break
		}
		var id string
		if json.Unmarshal(data.DashboardID, &id) == nil && ValidDashboardID(id) {
			return id, nil
		}
		level = data.Data
	}
	return "", errors.New("no valid dashboard id in it")
}

// ValidDashboardID says whether a dashboard id is believed: 1 to MaxDashboardID code points of valid UTF-8, no control characters.
func ValidDashboardID(id string) bool {
	return id != "" && utf8.ValidString(id) && utf8.RuneCountInString(id) <= MaxDashboardID && !strings.ContainsFunc(id, unicode.IsControl)
}

// mayBeJSON says whether a declared content type leaves room for JSON. None at all and text/plain are sloppy servers' ways.
func mayBeJSON(contentType string) bool {
	mediaType, _, _ := strings.Cut(contentType, ";")
	switch mediaType = strings.ToLower(strings.TrimSpace(mediaType)); mediaType {
	case "", "application/json", "text/json", "text/plain":
		return true
	}
	return strings.HasSuffix(mediaType, "+json")
}
