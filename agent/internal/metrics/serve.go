package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Path is where the metrics are.
const Path = "/metrics"

// Bounds of what a scraper may cost. Anybody on the host can connect, and must not
// use up the files that the agent may have open: its operations need some.
const (
	scrapeTimeout     = 5 * time.Second
	scrapesAtOnce     = 2
	connectionsAtOnce = 8
	headerBytes       = 8 << 10
	socketMode        = 0o660
	goodbyePatience   = time.Second
)

// Listen opens the address; see config.Telemetry for what it may be. A socket at
// which nobody listens, as a killed start leaves one, is replaced; no other file is.
func Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		if err := removeSocket(ctx, address); err != nil {
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

func removeSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	dialer := net.Dialer{Timeout: scrapeTimeout}
	connection, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("another program listens at %s", path), connection.Close())
	case !errors.Is(err, syscall.ECONNREFUSED):
		return err
	}
	return os.Remove(path)
}

// Handler answers scrapes. It complains of those that fail, unless that is nil.
func (m *Metrics) Handler(complaints promhttp.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: complaints, ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	}))
	return mux
}

// Serve answers scrapes until ctx ends, and closes the listener. What is being
// answered then may end, if that is soon.
func (m *Metrics) Serve(ctx context.Context, listener net.Listener, log hclog.Logger) {
	log = log.Named("metrics")
	complaints := log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
	server := &http.Server{
		Handler: m.Handler(complaints), ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout,
		MaxHeaderBytes: headerBytes, ErrorLog: complaints,
	}
	server.SetKeepAlivesEnabled(false) // whoever has asked makes room
	left := make(chan struct{})
	leave := context.AfterFunc(ctx, func() {
		defer close(left)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyePatience)
		defer cancel()
		if err := server.Shutdown(limited); err != nil {
			_ = server.Close() // whoever scrapes that slowly is cut off
		}
	})
	log.Info("serving metrics", "network", listener.Addr().Network(), "address", listener.Addr().String())
	if err := server.Serve(netutil.LimitListener(listener, connectionsAtOnce)); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.Error("metrics are not served any more", "error", err)
	}
	if !leave() {
		<-left
	}
}
