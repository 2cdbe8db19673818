package ops

import (
	"errors"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/repo"
)

var errNoBudget = &problem{http.StatusNotFound, "No budget was set for this tenant"}

// showBudget answers with the budget that was set for the tenant, or for all that have none (*).
func (a *rest) showBudget(rw http.ResponseWriter, req *http.Request, _ claims) error {
	b, err := a.w.Budget(req.Context(), req.PathValue("tenant_id"))
	if errors.Is(err, repo.ErrNotFound) {
		return errNoBudget
	}
	return writeAnswer(rw, b, err)
}

// setBudget reads credits as a string or a number, because JSON's numbers are decimal, too.
func (a *rest) setBudget(rw http.ResponseWriter, req *http.Request, _ claims) error {
	var credits, thresholds jsontext.Value
	if err := body(req, map[string]any{"credits": &credits, "thresholds": &thresholds}); err != nil {
		return err
	}
	amount := string(credits)
	if credits.Kind() == '"' && json.Unmarshal(credits, &amount) != nil {
		return &problem{http.StatusBadRequest, `"credits" is not valid text`}
	}
	percents := repo.Percents{80, 100}
	if thresholds.Kind() != 'n' && thresholds != nil {
		if err := json.Unmarshal(thresholds, &percents); err != nil {
			return &problem{http.StatusBadRequest, `"thresholds" must be an array of whole numbers`}
		}
	}
	b, err := repo.NewBudget(req.PathValue("tenant_id"), amount, percents)
	if err != nil {
		return &problem{http.StatusBadRequest, err.Error()}
	}
	return writeAnswer(rw, b, a.w.SetBudget(req.Context(), b))
}

func (a *rest) unsetBudget(rw http.ResponseWriter, req *http.Request, _ claims) error {
	err := a.w.UnsetBudget(req.Context(), req.PathValue("tenant_id"))
	if errors.Is(err, repo.ErrNotFound) {
		return errNoBudget
	}
	if err == nil {
		rw.WriteHeader(http.StatusNoContent)
	}
	return err
}
