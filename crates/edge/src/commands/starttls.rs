//! STARTTLS (RFC 3207).

use smtp::{EnhancedCode, Reply};

use crate::session::{End, Greeting, Session};

impl Session {
    pub(crate) async fn starttls(&mut self) -> Result<(), End> {
        self.connection.queue(&Reply::new(220, EnhancedCode(2, 0, 0), "Go ahead"));
        self.connection.flush().await?;
        if let Err(error) = self.connection.start_tls(&self.shared.tls).await {
            tracing::info!(
                listener = self.listener.name, client = %self.client_ip(), %error, "TLS handshake failed"
            );
            return Err(error.into());
        }
        // Everything said before is forgotten (RFC 3207 §4.2).
        self.rules.tls_started();
        self.greeting = Greeting::default();
        self.user = None;
        self.transaction = None;
        Ok(())
    }
}
