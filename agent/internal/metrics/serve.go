package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Path is where the metrics are.
const Path = "/metrics"

// Bounds of what a scraper may cost. Anybody on the host can connect.
const (
	scrapeTimeout   = 5 * time.Second
	scrapesAtOnce   = 2
	headerBytes     = 8 << 10
	idleTimeout     = time.Minute
	socketMode      = 0o660
	goodbyePatience = time.Second
)

// Listen opens the address; see config.Telemetry for what it may be. A socket that
// a killed start has left is replaced; no other file is.
func Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		if err := removeSocket(address); err != nil {
			return nil, fmt.Errorf("listen for scrapes: %w", err)
		}
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen for scrapes: %w", err)
	}
	if network == "unix" {
		if err := os.Chmod(address, socketMode); err != nil {
			return nil, errors.Join(fmt.Errorf("open socket to its group: %w", err), listener.Close())
		}
	}
	return listener, nil
}

func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	return os.Remove(path)
}

// ServeHTTP answers one scrape.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler(nil).ServeHTTP(w, r) }

func (m *Metrics) handler(complaints promhttp.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: complaints, ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	}))
	return mux
}

// Serve answers scrapes until ctx ends, and closes the listener.
func (m *Metrics) Serve(ctx context.Context, listener net.Listener, log hclog.Logger) {
	log = log.Named("metrics")
	complaints := log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
	server := &http.Server{
		Handler: m.handler(complaints), ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: headerBytes, ErrorLog: complaints,
	}
	leave := context.AfterFunc(ctx, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyePatience)
		defer cancel()
		if err := server.Shutdown(limited); err != nil {
			_ = server.Close() // whoever scrapes that slowly is cut off
		}
	})
	defer leave()
	log.Info("serving metrics", "network", listener.Addr().Network(), "address", listener.Addr().String())
	if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.Error("metrics are not served any more", "error", err)
	}
}
